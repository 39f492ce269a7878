"""A fuzzer of the package: recipes, flags, tensors and models, of which half are as they should be.

Every input is determined by its kind, a seed and a number. Whatever is refused has to be refused by an error of the
package's own, or by one sentence of the command line; a command leaves no half-written file, and a model is
afterwards what it was before, to the bit.
"""
