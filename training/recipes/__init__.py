"""Settings of published runs, one file each."""
