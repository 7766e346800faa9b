"""Answers whatever comes to port 53 of an address with the question's number and a hash of every byte that came."""
import hashlib
import socket
import sys
import threading


def answer(packet):
    return packet[:2] + hashlib.sha256(packet).digest() + packet[::-1]


def tcp(connection):
    connection.settimeout(3)
    try:
        head = connection.recv(2, socket.MSG_WAITALL)
        while len(head) == 2 and head != b"\xff\xff":
            packet = connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
            reply = answer(packet)
            connection.sendall(len(reply).to_bytes(2, "big") + reply)
            head = connection.recv(2, socket.MSG_WAITALL)
    except TimeoutError:
        pass
    connection.sendall(b"hello from a server that does not speak DNS")
    connection.close()


def listen(listener):
    while True:
        threading.Thread(target=tcp, args=(listener.accept()[0],), daemon=True).start()


udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((sys.argv[1], 53))
listener = socket.create_server((sys.argv[1], 53))
threading.Thread(target=listen, args=(listener,), daemon=True).start()
print("ready", flush=True)
while True:
    packet, client = udp.recvfrom(65535)
    print("heard", packet.hex(), flush=True)
    udp.sendto(answer(packet), client)
