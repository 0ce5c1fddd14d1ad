"""A second, independent implementation of pair keys, probes, signals, relay and control messages, key proofs and identity seeds. It wrote
the tables beside it.

Not part of the build: python3 with the package `cryptography`. Run it in this folder to write the tables again.
"""

import hashlib
import hmac
import ipaddress
import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def clamp(raw):
    b = bytearray(raw)
    b[0] &= 248
    b[31] = b[31] & 127 | 64
    return bytes(b)


def public(private):
    key = X25519PrivateKey.from_private_bytes(private).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def x25519(private, peer):
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(peer))


def mac(key, data):
    return hmac.new(key, data, hashlib.blake2s).digest()


def expand(prk, info, length):
    assert length <= 32
    return mac(prk, info + b"\x01")[:length]


def pair(own, peer, mesh_id, psk):
    """Sending and receiving (key, id) of `own`."""
    salt = b"warren probe v1 25519 ChaChaPoly BLAKE2s" + mesh_id.encode()
    if psk:
        salt += hashlib.blake2s(psk).digest()
    prk = mac(salt, x25519(own, peer))
    low, high = sorted([public(own), peer])
    lh, hl = (
        (expand(prk, b"v1" + low + high + b"key " + d, 32), expand(prk, b"v1" + low + high + b"id " + d, 8))
        for d in (b"lh", b"hl")
    )
    return (lh, hl) if public(own) == low else (hl, lh)


def probe(direction, tx, kind, epoch, observed):
    key, key_id = direction
    body = bytes(18)
    if observed:
        ip, port = observed
        ip = ipaddress.ip_address(ip)
        packed = ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed
        body = struct.pack(">H", port) + packed
    plain = struct.pack(">BBQ", kind, 0, epoch) + body
    salt = expand(key, b"salt" + tx + plain, 8)
    message_key = expand(key, b"message" + salt, 32)
    kind_on_wire = 0x0001 if kind in (1, 3) else 0x0101
    value_len = 8 + 8 + len(plain) + 16
    head = struct.pack(">HH", kind_on_wire, 4 + value_len) + b"\x21\x12\xa4\x42" + tx
    head += struct.pack(">HH", 0xDA57, value_len) + key_id + salt
    return head + ChaCha20Poly1305(message_key).encrypt(tx, plain, head)


def packed(ip, port):
    ip = ipaddress.ip_address(ip)
    return struct.pack(">H", port) + (ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed)


def signal(direction, tx, kind, poisonable, nat_class, answers, candidates):
    key, key_id = direction
    plain = struct.pack(">BBBB", kind, poisonable, nat_class, len(candidates)) + answers
    plain += b"".join(bytes([code]) + packed(*addr) for code, addr in candidates)
    head = key_id + tx
    message_key = expand(key, b"signal" + tx, 32)
    return head + ChaCha20Poly1305(message_key).encrypt(tx, plain.ljust(320, b"\0"), head)


def key_proof(private, peer, challenge, uid, public_key):
    data = b""
    for field in (b"warren key proof v1", challenge, uid.encode(), public_key):
        data += struct.pack(">Q", len(field)) + field
    return mac(x25519(private, peer), data)


def identity_seed(private):
    return expand(mac(b"warren identity v1", private), b"ed25519 seed", 32)


def seeded(name):
    return hashlib.blake2s(b"warren test vector " + name.encode()).digest()


def relay_message(key, kind, side, allocation, counter, token, observed):
    message = bytes([kind, 1, side, 0]) + struct.pack(">QQ", allocation, counter) + (token or bytes(16))
    body = bytes(18)
    if observed:
        ip = ipaddress.ip_address(observed[0])
        raw = ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed
        pad = hashlib.blake2s(message, key=key, person=b"wrn relP").digest()
        body = bytes(a ^ b for a, b in zip(raw + struct.pack(">H", observed[1]), pad))
    message += body + bytes(10)
    return message + hashlib.blake2s(message, key=key, person=b"wrn relM", digest_size=16).digest()


def address(ip, port):
    ip = ipaddress.ip_address(ip)
    return (ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed) + struct.pack(">H", port)


def control_message(kind, *fields):
    message = bytes([kind]) + b"".join(fields)
    return struct.pack(">H", len(message)) + message


def write(path, title, rows):
    with open(path, "w") as out:
        out.write(f"# {title}\n# Written by reference.py; asserted by tests/vectors.rs. Keys are for tests only.\n")
        for row in rows:
            out.write("\n" + "".join(f"{k} = {v}\n" for k, v in row.items()))


PAIRS = [
    ("plain", "a", "b", "6b1f3c6e-9f0f-4b64-8c0b-1f6f5d1f8a01", None),
    ("psk", "a", "b", "6b1f3c6e-9f0f-4b64-8c0b-1f6f5d1f8a01", seeded("psk")),
    ("other-mesh", "a", "b", "default", None),
    ("other-order", "c", "d", "6b1f3c6e-9f0f-4b64-8c0b-1f6f5d1f8a01", None),
]
PROBES = [
    ("ping", 1, 0, None),
    ("pong-v4", 2, 0, ("203.0.113.9", 51820)),
    ("pong-v6", 2, 0, ("2001:db8::1:9", 21820)),
    ("nominate", 3, 7, None),
    ("nominate-ack", 4, 2**64 - 1, None),
]

V4, V6 = ("203.0.113.9", 51820), ("2001:db8::1:9", 21820)
SIGNALS = [
    ("call", 16, True, 2, None, [(3, V4), (1, V6)]),
    ("ready", 17, False, 1, "call", [(1, V4)]),
    ("go", 18, False, 0, "ready", []),
    ("call-full", 16, False, 4, None, [(code, V6) for code in range(16)]),
]

pairs, probes, signals = [], [], []
for name, a, b, mesh_id, psk in PAIRS:
    own, peer = clamp(seeded(a)), public(clamp(seeded(b)))
    send, receive = pair(own, peer, mesh_id, psk)
    pairs.append({
        "case": name,
        "own_private": own.hex(),
        "own_public": public(own).hex(),
        "peer_private": clamp(seeded(b)).hex(),
        "peer_public": peer.hex(),
        "mesh_id": mesh_id,
        "psk": psk.hex() if psk else "none",
        "send_id": send[1].hex(),
        "receive_id": receive[1].hex(),
    })
    for kind_name, kind, epoch, observed in PROBES:
        tx = seeded(name + kind_name)[:12]
        probes.append({
            "case": f"{name} {kind_name}",
            "pair": name,
            "tx": tx.hex(),
            "kind": kind_name.split("-v")[0],
            "epoch": epoch,
            "observed": (f"[{observed[0]}]:{observed[1]}" if ":" in observed[0] else "%s:%d" % observed)
            if observed
            else "none",
            "datagram": probe(send, tx, kind, epoch, observed).hex(),
        })
    for kind_name, kind, poisonable, nat_class, answers, candidates in SIGNALS:
        tx = seeded(name + kind_name)[:12]
        answers = seeded(name + answers)[:12] if answers else bytes(12)
        text = lambda addr: f"[{addr[0]}]:{addr[1]}" if ":" in addr[0] else "%s:%d" % addr
        signals.append({
            "case": f"{name} {kind_name}",
            "pair": name,
            "tx": tx.hex(),
            "kind": kind_name.split("-")[0],
            "poisonable": str(poisonable).lower(),
            "class": nat_class,
            "answers": answers.hex(),
            "candidates": " ".join(f"{code}/{text(addr)}" for code, addr in candidates) or "none",
            "message": signal(send, tx, kind, poisonable, nat_class, answers, candidates).hex(),
        })

proofs = []
for name, node, operator, challenge, uid in [
    ("plain", "node 1", "operator", seeded("challenge"), "0b5ad6a0-7c1f-4d53-a4a5-6a2c4f5f0c11"),
    ("empty-challenge", "node 1", "operator", b"", "0b5ad6a0-7c1f-4d53-a4a5-6a2c4f5f0c11"),
    ("other-node", "node 2", "operator", seeded("challenge"), "0b5ad6a0-7c1f-4d53-a4a5-6a2c4f5f0c12"),
]:
    node, operator = clamp(seeded(node)), clamp(seeded(operator))
    proofs.append({
        "case": name,
        "node_private": node.hex(),
        "operator_private": operator.hex(),
        "challenge": challenge.hex() or "none",
        "node_uid": uid,
        "proof": key_proof(node, public(operator), challenge, uid, public(node)).hex(),
    })

identities = []
for name in ("own", "other"):
    private = clamp(seeded("identity " + name))
    identities.append({"case": name, "private": private.hex(), "seed": identity_seed(private).hex()})

relays = []
for name, kind, side, allocation, counter, token, observed in [
    ("bind", 0x81, 0, 0x0123456789ABCDEF, 1, None, None),
    ("challenge", 0x82, 0, 0x0123456789ABCDEF, 1, seeded("token")[:16], None),
    ("answer", 0x83, 1, 0, 2**64 - 1, seeded("token")[:16], None),
    ("bound-v4", 0x84, 1, 2**64 - 1, 7, None, ("203.0.113.9", 51820)),
    ("bound-v6", 0x84, 0, 1, 7, None, ("2001:db8::1:9", 21820)),
]:
    key = seeded("leg " + name)
    relays.append({
        "case": name,
        "key": key.hex(),
        "kind": name.split("-v")[0],
        "side": ["low", "high"][side],
        "allocation": "%016x" % allocation,
        "counter": counter,
        "token": token.hex() if token else "none",
        "observed": (f"[{observed[0]}]:{observed[1]}" if ":" in observed[0] else "%s:%d" % observed)
        if observed
        else "none",
        "datagram": relay_message(key, kind, side, allocation, counter, token, observed).hex(),
    })

NODE, TX, LEG = seeded("control node"), seeded("control tx")[:12], seeded("control leg")
u16, u64 = (lambda n: struct.pack(">H", n)), (lambda n: struct.pack(">Q", n))
show = lambda addr: f"[{addr[0]}]:{addr[1]}" if ":" in addr[0] else "%s:%d" % addr
key, tx = {"key": NODE.hex()}, {"tx": TX.hex()}
controls = [
    ("hello", {"version": 1, **key}, (0x01, b"\x01", NODE)),
    ("meet", key, (0x02, NODE)),
    ("part", key, (0x03, NODE)),
    ("allocate", {"hint": "none", **key}, (0x04, NODE, u16(0))),
    ("allocate", {"hint": 51963, **key}, (0x04, NODE, u16(51963))),
    ("release", key, (0x05, NODE)),
    ("signal", {"bytes": "0102", **key}, (0x06, NODE, b"\x01\x02")),
    ("stray", {"address": show(V4), **tx}, (0x07, TX, address(*V4))),
    ("ping", {}, (0x08,)),
    ("data", {"allocation": "%016x" % 5, "bytes": "04000000"}, (0x09, u64(5), b"\x04\0\0\0")),
    ("attach", key, (0x0A, NODE)),
    ("welcome", {"boot": 2**64 - 1, "address": show(V4)}, (0x81, u64(2**64 - 1), address(*V4))),
    ("welcome", {"boot": 0, "address": show(V6)}, (0x81, u64(0), address(*V6))),
    *[("denied", {"reason": n}, (0x82, bytes([n]))) for n in range(5)],
    ("present", {"met": "false", **key}, (0x83, NODE, b"\0")),
    ("present", {"met": "true", **key}, (0x83, NODE, b"\x01")),
    ("allocated", {"allocation": "%016x" % 2**63, "side": "high", "port": 51900, "leg_key": LEG.hex(), "counter": 2**40, **key},
        (0x84, NODE, u64(2**63), b"\x01", u16(51900), LEG, u64(2**40))),
    *[("refused", {"reason": n, **key}, (0x85, NODE, bytes([n]))) for n in range(4)],
    ("ready", key, (0x86, NODE)),
    ("unbound", key, (0x87, NODE)),
    *[("released", {"reason": n, **key}, (0x88, NODE, bytes([n]))) for n in range(5)],
    ("signal-from", {"bytes": "none", **key}, (0x89, NODE)),
    ("stray-sent", {"address": show(V6), **tx}, (0x8A, TX, address(*V6))),
    ("drain", {"seconds": 3}, (0x8B, u16(3))),
    ("pong", {}, (0x8C,)),
    ("data-from", {"allocation": "%016x" % 5, "bytes": "04000000"}, (0x8D, u64(5), b"\x04\0\0\0")),
]
controls = [{"kind": kind, **fields, "message": control_message(*parts).hex()} for kind, fields, parts in controls]

write("control.txt", "Control messages with their length; reasons by number.", controls)
write("pair.txt", "Pair keys: X25519, HKDF-BLAKE2s, directional ids.", pairs)
write("probe.txt", "Probes as `own` of the named pair sends them.", probes)
write("relay.txt", "Relay messages: keyed BLAKE2s.", relays)
write("signal.txt", "Signals as `own` of the named pair sends them.", signals)
write("proof.txt", "Key proofs: HMAC-BLAKE2s keyed by X25519.", proofs)
write("identity.txt", "Seeds of identity keys: HKDF-BLAKE2s of the WireGuard key.", identities)
