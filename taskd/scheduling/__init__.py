"""Which task goes to the broker next, and what is put right when messages, workers or time are lost. It knows no
connection and no request.
"""
