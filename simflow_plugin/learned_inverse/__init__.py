"""A student that inverts a frozen flow in one parallel pass, beside the exact inverse.

    teacher.py   the frozen flow: from a run or converted weights, named by the content of its weights
    student.py   the bidirectional transformer from noise to latents
    targets.py   pairs of noise and latents, and the terms that the student is trained with

The model of the harness that joins them is `models/learned_inverse.py`.
Reference: BiFlow, arXiv:2512.10953; FARMER, arXiv:2510.23588.
"""
