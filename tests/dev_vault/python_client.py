"""Drives the embedded vault with Microsoft's Python client: PROGRAM STATE-DIRECTORY, and the environment of DIR/env."""

import os
import socket
import subprocess
import sys

from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.identity import ClientSecretCredential
from azure.keyvault.keys import KeyClient, KeyType
from azure.keyvault.keys.crypto import CryptographyClient, EncryptionAlgorithm, KeyWrapAlgorithm

PROGRAM, STATE = sys.argv[1:]
CA_FILE = os.environ["KMSFS_CA_FILE"]
NAME = "python"

resolve = socket.getaddrinfo


def resolve_localhost(host, *args, **kwargs):
    """RFC 6761 sends *.localhost to loopback; the C library here does not."""
    return resolve("127.0.0.1" if str(host).endswith("localhost") else host, *args, **kwargs)


socket.getaddrinfo = resolve_localhost


def dev_vault(*arguments):
    subprocess.run([PROGRAM, "dev-vault", *arguments, "--state", STATE], check=True, stdout=subprocess.DEVNULL)


def credential(secret):
    # Instance discovery asks login.microsoftonline.com whether it knows the authority.
    return ClientSecretCredential(
        os.environ["AZURE_TENANT_ID"],
        os.environ["AZURE_CLIENT_ID"],
        secret,
        authority=os.environ["AZURE_AUTHORITY_HOST"],
        disable_instance_discovery=True,
        connection_verify=CA_FILE,
    )


def key_client(secret=os.environ["AZURE_CLIENT_SECRET"]):
    return KeyClient(
        os.environ["KMSFS_DEV_VAULT_URL"], credential(secret), connection_verify=CA_FILE, retry_total=0
    )


def cryptography(key):
    return CryptographyClient(
        key, credential(os.environ["AZURE_CLIENT_SECRET"]), connection_verify=CA_FILE, retry_total=0
    )


def refused(expected, call, *arguments):
    """Asserts on (status, code, inner code) of the error that the call raises."""
    try:
        call(*arguments)
    except HttpResponseError as error:
        inner = error.error.innererror or {} if error.error else {}
        got = (error.status_code, error.error.code if error.error else None, inner.get("code"))
        assert got == expected, (got, expected)
        return error
    raise AssertionError(f"{call} was not refused, expected {expected}")


def main():
    keys = key_client()
    key = keys.create_rsa_key(NAME, size=2048, tags={"tenant": "a"})
    assert key.id.startswith(os.environ["KMSFS_DEV_VAULT_URL"] + "/keys/python/"), key.id
    assert keys.get_key(NAME).key.n == key.key.n
    assert keys.get_key(NAME, key.properties.version).properties.tags == {"tenant": "a"}

    # By id, so that the client does not have the public half and asks the vault for each operation.
    crypto = cryptography(key.id)
    for algorithm in (KeyWrapAlgorithm.rsa_oaep_256, KeyWrapAlgorithm.rsa_oaep):
        wrapped = crypto.wrap_key(algorithm, b"k" * 32)
        assert wrapped.key_id == key.id
        assert crypto.unwrap_key(algorithm, wrapped.encrypted_key).key == b"k" * 32
    encrypted = crypto.encrypt(EncryptionAlgorithm.rsa_oaep_256, b"text")
    assert crypto.decrypt(EncryptionAlgorithm.rsa_oaep_256, encrypted.ciphertext).plaintext == b"text"
    wrapped = crypto.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, b"k" * 32).encrypted_key

    rotated = keys.rotate_key(NAME)
    assert rotated.properties.version != key.properties.version
    assert len(list(keys.list_properties_of_key_versions(NAME, max_page_size=1))) == 2
    assert [item.name for item in keys.list_properties_of_keys()] == [NAME]
    policy = keys.update_key_rotation_policy(NAME, keys.get_key_rotation_policy(NAME), expires_in="P90D")
    assert policy.expires_in == "P90D" and keys.get_key_rotation_policy(NAME).expires_in == "P90D"

    def unwrap():
        # A fresh client each time: this one checks dates and key_ops by itself once it has seen the key.
        return cryptography(key.id).unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped).key

    keys.update_key_properties(NAME, key.properties.version, enabled=False)
    assert keys.get_key(NAME, key.properties.version).properties.enabled is False
    refused((403, "Forbidden", "KeyDisabled"), unwrap)
    keys.update_key_properties(NAME, key.properties.version, enabled=True)
    assert unwrap() == b"k" * 32

    for fault, expected in {
        "forbid-role": (403, "Forbidden", "ForbiddenByRbac"),
        "forbid-firewall": (403, "Forbidden", "ForbiddenByFirewall"),
        "throttle": (429, "Throttled", None),
    }.items():
        dev_vault("fault", fault)
        refused(expected, unwrap)
    dev_vault("fault", "none")
    assert unwrap() == b"k" * 32

    deleted = keys.begin_delete_key(NAME).result()
    assert deleted.recovery_id.endswith("/deletedkeys/python")
    refused((404, "KeyNotFound", None), keys.get_key, NAME)
    refused((409, "Conflict", "ObjectIsDeletedButRecoverable"), keys.create_rsa_key, NAME)
    assert [item.name for item in keys.list_deleted_keys()] == [NAME]
    keys.begin_recover_deleted_key(NAME).wait()
    assert unwrap() == b"k" * 32
    keys.begin_delete_key(NAME).wait()
    keys.purge_deleted_key(NAME)
    try:
        keys.get_deleted_key(NAME)
    except ResourceNotFoundError:
        pass
    else:
        raise AssertionError("the key is still there after a purge")

    # An AES key, as a Managed HSM has them.
    key = keys.create_oct_key("hsm", size=256, hardware_protected=True)
    assert (key.key_type, key.key.k, key.key.n) == (KeyType.oct_hsm, None, None), key.key
    crypto = cryptography(key.id)
    wrapped = crypto.wrap_key(KeyWrapAlgorithm.aes_256, b"k" * 32)
    assert wrapped.key_id == key.id and len(wrapped.encrypted_key) == 40
    assert crypto.unwrap_key(KeyWrapAlgorithm.aes_256, wrapped.encrypted_key).key == b"k" * 32
    refused((400, "BadParameter", None), crypto.unwrap_key, KeyWrapAlgorithm.aes_256, b"x" * 40)
    newer = keys.rotate_key("hsm")
    assert newer.key_type == KeyType.oct_hsm and newer.properties.version != key.properties.version
    refused((400, "BadParameter", None), cryptography(newer.id).unwrap_key, KeyWrapAlgorithm.aes_256, wrapped.encrypted_key)

    try:
        key_client(secret="wrong").get_key(NAME)
    except ClientAuthenticationError as error:
        assert "AADSTS7000215" in error.message, error.message
    else:
        raise AssertionError("a wrong secret was accepted")
    print("all passed")


main()
