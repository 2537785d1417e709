"""What each action does: one class for each theme, one method for each action, with the action's name.

A method gets the principal, the connection's subscriptions and the typed request. It returns a Reply or raises a
TaskdError.
"""
