"""What a batch's report is made of."""
