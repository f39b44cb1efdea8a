"""Batches: many requests in one file. Their lines become jobs a few at a time, and their answers two files.

The record in Redis is the truth. Any API process goes on with a batch that another one left.
"""
