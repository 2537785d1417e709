"""The client library: connection, session tokens, and resending. It knows neither terminal nor command line."""
