"""Objects of one DeepSeekV3Deployment: a kind a file, pure functions of the plan, plain dictionaries as results."""
