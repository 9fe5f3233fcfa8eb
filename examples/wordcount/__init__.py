"""Map and reduce over real text files: which words are the most frequent?"""
