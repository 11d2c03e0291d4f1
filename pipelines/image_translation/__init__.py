"""One look into another: CycleGAN, pix2pix, CUT and StarGAN, and the checkpoints that there are of them."""
