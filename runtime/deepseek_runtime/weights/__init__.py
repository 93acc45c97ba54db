"""From the hub's files to this rank's tensors: the index, FP8 blocks, slices, downloads. Knows nothing of requests."""
