"""The client library: connections, sessions, retries and resending. It knows neither terminal nor command line."""
