"""`study`: a blind A/B preference page, and what its votes say.

Two folders of samples at the same prompts and seeds are shown pair by pair; people answer left, right or no difference.

    pairs     the two folders, checked and paired      trials    who sees what, in which order, on which side
    votes     the database                             results   what the votes say             server   the page
"""
