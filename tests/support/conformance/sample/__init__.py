"""A small package in the source's conventions, right for every version; the tests plant mistakes in copies of it."""
