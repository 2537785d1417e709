"""What a request may do: who asks, the actions by theme, and the subscriptions of a connection. It knows no transport:
it gets typed requests and returns replies.
"""
