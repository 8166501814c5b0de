"""Digests that need no model: extractive, within a number of tokens, ready in milliseconds, never half a line.

`shorten.py` makes one text shorter; `stretch.py` tells a stretch of conversation; `facts.py` lists and checks facts.
Below them: `pick.py` says which kind a text is, and each kind has a file (`prose.py`, `data.py`, `log.py`, `other.py`);
`values.py` knows which words are facts, `ledger.py` ranks those of many messages, `fit.py` packs whole pieces.
"""
