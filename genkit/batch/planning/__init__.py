"""Recipe to jobs, in steps: the forms as written, stages with their tables read, combinations, drafts, jobs on disk."""
