"""The yardstick: one random model of DeepSeek-V3's architecture, timed in this runtime and in its peers in one run."""
