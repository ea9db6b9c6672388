"""Is a store whole, and has it stayed as it was?

`structure` checks a whole store, `slide` one slide of it, with the checks in `checks` and `token_checks`. Each fault is
a `Finding`. `seal` writes and compares checksums. `reindex` rebuilds derived files, with the help of `join_commits`.
"""
