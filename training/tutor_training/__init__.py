"""Trains `tutor`: a model of the DeepSeek-V3 architecture, small enough for two CPU cores, that adds and subtracts.

problems   what it learns: questions, steps and answers, in English and Chinese
vocabulary the tokenizer, learned from those dialogues, with DeepSeek's own special tokens
network    the architecture, written for training and independently of the runtime that will serve it
train      the loop
export     the trained weights in the hub's layout, FP8 blocks included
evaluate   held-out accuracy and draft acceptance of an exported checkpoint, as the runtime computes them
"""
