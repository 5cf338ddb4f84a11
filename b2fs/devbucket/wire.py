"""How buckets, versions, parts and keys look in B2's JSON and headers.

Rules
  Pure: rows in, builtins out. Shapes are those of apidocs and of what b2sdk 2.13 and rclone 1.60 parse.
  The API versions v1 to v4 differ here and nowhere else.
"""

from __future__ import annotations

from typing import Any

from b2fs.devbucket.rules import encode
from b2fs.devbucket.store import BucketRow, Part, Version

Json = dict[str, Any]

_SSE = {"algorithm": "AES256", "mode": "SSE-B2"}
_NO_SSE = {"algorithm": None, "mode": None}
_RETENTION = {
    "isClientAuthorizedToRead": True,
    "value": {"mode": None, "retainUntilTimestamp": None},
}
_LEGAL_HOLD = {"isClientAuthorizedToRead": True, "value": None}
_FILE_LOCK = {
    "isClientAuthorizedToRead": True,
    "value": {"defaultRetention": {"mode": None, "period": None}, "isFileLockEnabled": False},
}
_HEADER_OF_INFO = {
    "b2-cache-control": "Cache-Control",
    "b2-expires": "Expires",
    "b2-content-disposition": "Content-Disposition",
    "b2-content-language": "Content-Language",
    "b2-content-encoding": "Content-Encoding",
}


def version_json(version: Version, account_id: str, api: int) -> Json:
    stored = version.action in ("upload", "start")
    row: Json = {
        "accountId": account_id,
        "action": version.action,
        "bucketId": version.bucket_id,
        "contentLength": version.size,
        "contentMd5": None,
        "contentSha1": version.sha1 or None,
        "contentType": version.content_type or None,
        "fileId": version.file_id or None,
        "fileInfo": version.info,
        "fileName": version.name,
        "fileRetention": _RETENTION,
        "legalHold": _LEGAL_HOLD,
        "replicationStatus": None,
        "serverSideEncryption": _SSE if stored else _NO_SSE,
        "uploadTimestamp": version.uploaded_ms,
    }
    if api == 1:
        row["size"] = version.size  # the old name, which v1 clients read in listings
    return row


def part_json(part: Part) -> Json:
    return {
        "contentLength": part.size,
        "contentMd5": None,
        "contentSha1": part.sha1,
        "fileId": part.file_id,
        "partNumber": part.number,
        "serverSideEncryption": _SSE,
        "uploadTimestamp": part.uploaded_ms,
    }


def bucket_json(bucket: BucketRow, account_id: str) -> Json:
    settings = bucket.settings
    return {
        "accountId": account_id,
        "bucketId": bucket.id,
        "bucketInfo": settings.get("bucketInfo", {}),
        "bucketName": bucket.name,
        "bucketType": bucket.type,
        "corsRules": settings.get("corsRules", []),
        "defaultRetention": {"mode": None, "period": None},
        "defaultServerSideEncryption": {"isClientAuthorizedToRead": True, "value": _SSE},
        "fileLockConfiguration": _FILE_LOCK,
        "lifecycleRules": settings.get("lifecycleRules", []),
        "options": ["s3"],
        "replicationConfiguration": {"isClientAuthorizedToRead": True, "value": None},
        "revision": bucket.revision,
    }


def key_json(key_id: str, grants: Json, account_id: str, api: int) -> Json:
    row = {
        "accountId": account_id,
        "applicationKeyId": key_id,
        "capabilities": grants["capabilities"],
        "expirationTimestamp": grants.get("expires_ms"),
        "keyName": grants.get("keyName", ""),
        "namePrefix": grants["namePrefix"],
        "options": ["s3"],
    }
    bucket_ids = grants["bucketIds"]
    if api >= 4:
        row["bucketIds"] = bucket_ids
    else:
        row["bucketId"] = bucket_ids[0] if bucket_ids else None
    return row


def account_json(
    account_id: str,
    token: str,
    base_url: str,
    grants: Json,
    buckets: list[Json],
    part_sizes: tuple[int, int],
    api: int,
) -> Json:
    """The answer to b2_authorize_account. `buckets`: id and name of each bucket the key is restricted to;
    `part_sizes`: (absolute minimum, recommended).
    """
    capabilities = list(grants["capabilities"])
    prefix = grants["namePrefix"]
    restricted = grants["bucketIds"] is not None
    single: Json = {
        "bucketId": buckets[0]["id"] if buckets else None,
        "bucketName": buckets[0]["name"] if buckets else None,
        "capabilities": capabilities,
        "namePrefix": prefix,
    }
    storage: Json = {
        "absoluteMinimumPartSize": part_sizes[0],
        "apiUrl": base_url,
        "downloadUrl": base_url,
        "recommendedPartSize": part_sizes[1],
        "s3ApiUrl": base_url,
    }
    account: Json = {"accountId": account_id, "authorizationToken": token}
    if api <= 2:
        old = {"minimumPartSize": part_sizes[1]} if api == 1 else {}
        return {**account, **storage, **old, "allowed": single}
    if api == 3:
        storage.update(single, infoType="storageApi")
    else:
        storage["infoType"] = "storageApi"
        storage["allowed"] = {
            "buckets": buckets if restricted else None,
            "capabilities": capabilities,
            "namePrefix": prefix,
        }
    return {
        **account,
        "apiInfo": {"storageApi": storage},
        "applicationKeyExpirationTimestamp": grants.get("expires_ms"),
    }


def download_headers(version: Version) -> list[tuple[str, str]]:
    headers = [
        ("Accept-Ranges", "bytes"),
        ("Content-Type", version.content_type),
        ("X-Bz-File-Id", version.file_id),
        ("X-Bz-File-Name", encode(version.name)),
        ("X-Bz-Content-Sha1", version.sha1),
        ("X-Bz-Upload-Timestamp", str(version.uploaded_ms)),
        ("X-Bz-Server-Side-Encryption", "AES256"),
    ]
    for key, value in version.info.items():
        headers.append(("X-Bz-Info-" + key, encode(value)))
        if key in _HEADER_OF_INFO:
            headers.append((_HEADER_OF_INFO[key], value))
    return headers
