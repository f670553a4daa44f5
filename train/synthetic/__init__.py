"""Seeds in, a corpus of drawn faces in Aff-Wild2's layout out, and videos with the truth beside them.

Read plan, motion, face, scene, video, corpus.
"""
