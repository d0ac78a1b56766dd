"""`python -m gateway.adapters.sandbox <descriptor>`: the nursery, on a socket that it inherits."""

import socket
import sys

from gateway.adapters.sandbox.forking import attend

if __name__ == "__main__":
    attend(socket.socket(fileno=int(sys.argv[1])))
