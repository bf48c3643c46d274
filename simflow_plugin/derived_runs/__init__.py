"""Runs that start from a trained run, their parent: what is taken over, and how the parent is known again.

parent.py           the parent's weights in the new run, named by content; the derived configuration
distillation.py     a student of the parent's flow
decoder_tuning.py   the parent's decoder trained on, encoder and flow frozen
"""
