"""What a candidate has to prove before it may decide anything: a gate a file, and the table of all of them."""
