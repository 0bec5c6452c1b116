"""Archives of every format that was ever released, whole and damaged, and the script that made them."""
