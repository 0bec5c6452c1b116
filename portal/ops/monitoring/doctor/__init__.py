"""What the doctor looks at: each check is a function that returns one finding, and changes nothing."""
