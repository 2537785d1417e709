"""What the command line says, in English and Spanish. No logic but the choice of the language."""
