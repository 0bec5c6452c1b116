"""Mutation tests: the code is changed at random places, and the tests have to notice (`tools/test.sh --mutations`)."""
