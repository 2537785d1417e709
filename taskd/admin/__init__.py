"""taskadmin, the program of the machine's administrator: it works on the store, and needs neither server nor broker."""
