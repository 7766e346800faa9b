"""Asks name servers through sockets used in every way, and checks every byte and every address of what comes back."""
import hashlib
import os
import socket
import struct
import sys

echo, real, real6 = sys.argv[1:4]


def question(name, kind=1, number=0x1234):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def echoed(packet):
    return packet[:2] + hashlib.sha256(packet).digest() + packet[::-1]


def exactly(left, right):
    assert left == right, f"{left!r} is not {right!r}"


foreign = question("www.example.org")
packets = [foreign, b"\x00\x01garbage", foreign[:15], foreign + os.urandom(400), os.urandom(1200), b"\x07"]

for family, host in ((socket.AF_INET, echo), (socket.AF_INET6, "::ffff:" + echo)):
    for packet in packets:
        plain = socket.socket(family, socket.SOCK_DGRAM)
        plain.settimeout(5)
        plain.sendto(packet, (host, 53))
        heard, address = plain.recvfrom(65535)
        exactly(heard, echoed(packet))
        exactly(address[:2], (host, 53))
        connected = socket.socket(family, socket.SOCK_DGRAM)
        connected.settimeout(5)
        connected.connect((host, 53))
        exactly(connected.getpeername()[:2], (host, 53))
        connected.send(packet)
        exactly(connected.recv(65535), echoed(packet))
        connected.sendmsg([packet[:1], packet[1:]])
        heard, _, _, address = connected.recvmsg(65535)
        exactly((heard, address[:2]), (echoed(packet), (host, 53)))

# Two servers through one socket, and a name of the mesh from both.
both = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
both.settimeout(5)
mesh = question("web.default.svc.cluster.local", number=7)
for server in (echo, real):
    both.sendto(mesh, (server, 53))
    heard, address = both.recvfrom(65535)
    exactly(address, (server, 53))
    exactly(heard[:4], struct.pack("!HH", 7, 0x8580))
both.sendto(question("host.upstream.test", number=8), (real, 53))
both.sendto(foreign, (echo, 53))
heard = dict(reversed(both.recvfrom(65535)) for _ in range(2))
exactly(heard[(echo, 53)], echoed(foreign))
exactly(heard[(real, 53)][-4:], bytes([192, 0, 2, 80]))
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
six.settimeout(5)
six.sendto(mesh, (real6, 53))
exactly(six.recvfrom(65535)[1][:2], (real6, 53))


def message(connection):
    length = int.from_bytes(connection.recv(2, socket.MSG_WAITALL), "big")
    return connection.recv(length, socket.MSG_WAITALL)


# Over TCP: ours, theirs, ours again, byte by byte and several at once; garbage; and a protocol that is not DNS at all.
stream = socket.create_connection((echo, 53), timeout=5)
exactly(stream.getpeername(), (echo, 53))
for packet in (mesh, foreign, mesh, packets[3]):
    framed = len(packet).to_bytes(2, "big") + packet
    for byte in framed if packet is foreign else (framed,):
        stream.sendall(bytes([byte]) if packet is foreign else byte)
    reply = message(stream)
    if packet is mesh:
        exactly(reply[:4], struct.pack("!HH", 7, 0x8580))
    else:
        exactly(reply, echoed(packet))
stream.sendall(2 * (len(foreign).to_bytes(2, "big") + foreign))
for _ in range(2):
    exactly(message(stream), echoed(foreign))
stream.close()
silent = socket.create_connection((echo, 53), timeout=10)
exactly(silent.recv(1000), b"hello from a server that does not speak DNS")
print("all as expected")
