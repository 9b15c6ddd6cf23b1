"""Texts from a trained model, token by token, with what its gates close left out."""
