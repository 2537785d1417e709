"""Which task is assigned to which worker, and what is put right when workers or time are lost. It knows no connection
and no request.
"""
