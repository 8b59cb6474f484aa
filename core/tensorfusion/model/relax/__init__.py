"""What would have to change for a request to fit: the smallest change of every kind.

`tensorfusion.model.relax.answer.relax` is the way in.
"""
