"""The task server: line connections, actions, accounts, submission, dispatcher and event hub."""
