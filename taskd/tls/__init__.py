"""What the server, the client and the connection to RabbitMQ share of TLS.

``files`` reads certificates and endpoint strings, ``client`` checks a server, and ``problems`` says what is wrong with
its certificate. Only the last one can be imported without OpenSSL, which takes a plain client a quarter of its start.
"""
