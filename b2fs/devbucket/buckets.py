"""Native calls on buckets, upload URLs and application keys."""

from __future__ import annotations

from typing import Any

from b2fs.devbucket import rules
from b2fs.devbucket.auth import unauthorized
from b2fs.devbucket.calls import Arguments, Context, call
from b2fs.devbucket.rules import Refused, bad_request
from b2fs.devbucket.wire import Json, bucket_json, key_json

MAX_KEY_LIFETIME_S = 1000 * 24 * 3600


class ListBuckets(Arguments, frozen=True):
    account_id: str | None = None
    bucket_id: str | None = None
    bucket_name: str | None = None
    bucket_types: list[str] | None = None


@call("b2_list_buckets", ListBuckets, "listBuckets")
def list_buckets(context: Context, args: ListBuckets) -> Json:
    """A key that is restricted to buckets must name one of them (apidocs/b2-list-buckets)."""
    allowed = context.grant.bucket_ids
    buckets = context.store.buckets()
    if args.bucket_id is not None:
        buckets = [b for b in buckets if b.id == args.bucket_id]
    if args.bucket_name is not None:
        buckets = [b for b in buckets if b.name.lower() == args.bucket_name.lower()]
    if allowed is not None:
        named = args.bucket_id is not None or args.bucket_name is not None
        if not named or not buckets or any(b.id not in allowed for b in buckets):
            raise unauthorized("the key is restricted to other buckets")
    if args.bucket_types and "all" not in args.bucket_types:
        buckets = [b for b in buckets if b.type in args.bucket_types]
    return {"buckets": [bucket_json(b, context.account_id) for b in buckets]}


class CreateBucket(Arguments, frozen=True):
    bucket_name: str
    bucket_type: str
    account_id: str | None = None
    bucket_info: dict[str, Any] | None = None
    cors_rules: list[Any] | None = None
    lifecycle_rules: list[dict[str, Any]] | None = None


@call("b2_create_bucket", CreateBucket, "writeBuckets")
def create_bucket(context: Context, args: CreateBucket) -> Json:
    _require_unrestricted(context)
    _require_account(context, args.account_id)
    rules.check_bucket_name(args.bucket_name)
    rules.check_bucket_type(args.bucket_type)
    settings = _settings(args.bucket_info, args.cors_rules, args.lifecycle_rules)
    bucket = context.store.create_bucket(args.bucket_name, args.bucket_type, settings)
    return bucket_json(bucket, context.account_id)


class UpdateBucket(Arguments, frozen=True):
    bucket_id: str
    account_id: str | None = None
    bucket_type: str | None = None
    bucket_info: dict[str, Any] | None = None
    cors_rules: list[Any] | None = None
    lifecycle_rules: list[dict[str, Any]] | None = None
    if_revision_is: int | None = None


@call("b2_update_bucket", UpdateBucket, "writeBuckets")
def update_bucket(context: Context, args: UpdateBucket) -> Json:
    _require_account(context, args.account_id)
    bucket = context.bucket(args.bucket_id)
    if args.if_revision_is is not None and args.if_revision_is != bucket.revision:
        raise Refused(409, "conflict", f"The revision is {bucket.revision}, not {args.if_revision_is}")
    if args.bucket_type is not None:
        rules.check_bucket_type(args.bucket_type)
    settings = bucket.settings | _settings(args.bucket_info, args.cors_rules, args.lifecycle_rules)
    return bucket_json(
        context.store.update_bucket(bucket, args.bucket_type or bucket.type, settings),
        context.account_id,
    )


class BucketId(Arguments, frozen=True):
    bucket_id: str
    account_id: str | None = None


@call("b2_delete_bucket", BucketId, "deleteBuckets")
def delete_bucket(context: Context, args: BucketId) -> Json:
    _require_account(context, args.account_id)
    bucket = context.bucket(args.bucket_id)
    context.store.delete_bucket(bucket)
    return bucket_json(bucket, context.account_id)


@call("b2_get_upload_url", BucketId, "writeFiles")
def get_upload_url(context: Context, args: BucketId) -> Json:
    bucket = context.bucket(args.bucket_id)
    grant = context.auth.issue(context.grant.key_id, ["uploadFile"], [bucket.id], context.grant.prefix)
    return {
        "authorizationToken": grant.token,
        "bucketId": bucket.id,
        "uploadUrl": f"{context.base_url}/b2api/v{context.api}/b2_upload_file/{bucket.id}",
    }


@call("b2_get_bucket_notification_rules", BucketId, "readBucketNotifications")
def get_bucket_notification_rules(context: Context, args: BucketId) -> Json:
    return {"bucketId": context.bucket(args.bucket_id).id, "eventNotificationRules": []}


@call("b2_set_bucket_notification_rules", BucketId, "writeBucketNotifications")
def set_bucket_notification_rules(context: Context, args: BucketId) -> Json:
    context.bucket(args.bucket_id)
    raise bad_request("Event notifications are not enabled for this account")


class CreateKey(Arguments, frozen=True):
    capabilities: list[str]
    key_name: str
    account_id: str | None = None
    valid_duration_in_seconds: int | None = None
    bucket_id: str | None = None
    bucket_ids: list[str] | None = None
    name_prefix: str | None = None


@call("b2_create_key", CreateKey, "writeKeys")
def create_key(context: Context, args: CreateKey) -> Json:
    _require_account(context, args.account_id)
    bucket_ids = args.bucket_ids or ([args.bucket_id] if args.bucket_id else None)
    if args.name_prefix and not bucket_ids:
        raise bad_request("namePrefix needs a bucket")
    for bucket_id in bucket_ids or ():
        context.bucket(bucket_id)
    if context.grant.bucket_ids is not None and not bucket_ids:
        raise unauthorized("a restricted key cannot make an unrestricted one")
    unknown = set(args.capabilities) - set(rules.ALL_CAPABILITIES)
    if unknown or not args.capabilities:
        raise bad_request(f"Unknown capabilities: {', '.join(sorted(unknown)) or 'none given'}")
    if missing := set(args.capabilities) - context.grant.capabilities:
        raise unauthorized(f"the key lacks the capabilities {', '.join(sorted(missing))}")
    expires_ms = None
    if args.valid_duration_in_seconds is not None:
        if not 1 <= args.valid_duration_in_seconds < MAX_KEY_LIFETIME_S:
            raise bad_request("validDurationInSeconds out of range")
        expires_ms = context.store.clock.now_ms() + args.valid_duration_in_seconds * 1000
    grants: Json = {
        "keyName": args.key_name,
        "capabilities": args.capabilities,
        "bucketIds": bucket_ids,
        "namePrefix": args.name_prefix or None,
        "expires_ms": expires_ms,
    }
    key_id, key = context.auth.create_key(grants)
    return {**key_json(key_id, grants, context.account_id, context.api), "applicationKey": key}


class ListKeys(Arguments, frozen=True):
    account_id: str | None = None
    max_key_count: int | None = None
    start_application_key_id: str | None = None


@call("b2_list_keys", ListKeys, "listKeys")
def list_keys(context: Context, args: ListKeys) -> Json:
    _require_account(context, args.account_id)
    limit = 100 if args.max_key_count is None else args.max_key_count
    if not 1 <= limit <= 10_000:
        raise bad_request(f"maxKeyCount out of range: {limit}")
    rows = context.store.keys(args.start_application_key_id or "", limit + 1)
    return {
        "keys": [key_json(key_id, grants, context.account_id, context.api) for key_id, grants in rows[:limit]],
        "nextApplicationKeyId": rows[limit][0] if len(rows) > limit else None,
    }


class KeyId(Arguments, frozen=True):
    application_key_id: str


@call("b2_delete_key", KeyId, "deleteKeys")
def delete_key(context: Context, args: KeyId) -> Json:
    found = context.store.key(args.application_key_id)
    if found is None:
        raise bad_request(f"No such application key: {args.application_key_id[:80]}")
    context.auth.delete_key(args.application_key_id)
    return key_json(args.application_key_id, found[1], context.account_id, context.api)


def _settings(
    info: dict[str, Any] | None, cors: list[Any] | None, lifecycle: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """The settings that were given, checked."""
    settings: dict[str, Any] = {}
    if info is not None:
        rules.check_bucket_info(info)
        settings["bucketInfo"] = {key.lower(): value for key, value in info.items()}
    if cors is not None:
        settings["corsRules"] = cors
    if lifecycle is not None:
        rules.check_lifecycle(lifecycle)
        settings["lifecycleRules"] = lifecycle
    return settings


def _require_account(context: Context, account_id: str | None) -> None:
    if account_id is not None and account_id != context.account_id:
        raise bad_request(f"Invalid accountId: {account_id[:80]}")


def _require_unrestricted(context: Context) -> None:
    if context.grant.bucket_ids is not None:
        raise unauthorized("the key is restricted to other buckets")
