"""The texts of the command line in English and Spanish."""
