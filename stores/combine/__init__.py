"""New stores from old ones: merge and subset."""
