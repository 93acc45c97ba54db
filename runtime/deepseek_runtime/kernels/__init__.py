"""The operations that cost time, each as plain torch with the signature that a faster kernel would have."""
