"""Child processes for handlers and programs: a reaper, a fork server below it, and children below that. All but
``client`` runs outside of Twisted, in processes of its own.
"""
