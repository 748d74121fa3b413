"""Components 2b-2d of arXiv 2310.02238: alternative labels for every token of the target.

`consistency` decides which positions get a label and from where, `combine` is the tensor arithmetic,
`build` streams blocks into label shards, `shards` stores them, `preview` shows them to a person.
"""
