//! The statements, each one round trip under READ COMMITTED.
//!
//! They are the step that [`decide`](crate::backend::decide) describes, for many rows at once. Placeholders are cast
//! because the driver does not infer arrays. Times are milliseconds of the server's clock, read when a row is looked
//! at: a statement may have waited for a lock before.
//!
//! Rows are locked in one order, that of bytes. What is asked for has the database's order of letters unless told otherwise.
//!
//! `ops` is `[op, fingerprint, ...]`, newest first. An op has its sign bit set and a fingerprint has not, so `&&` and
//! `@>` never take one for the other.

/// Milliseconds of the server's clock, now.
macro_rules! now {
    () => {
        // `extract` gives a numeric, which costs ten times as much to work with as the float.
        "(date_part('epoch', clock_timestamp())*1000)::bigint"
    };
}

/// The slots of a statement that this server owns, held against whoever would take them away or raise their floor. `cap`
/// is the largest reading that a version may have.
macro_rules! owned {
    () => {
        concat!(
            "o AS MATERIALIZED (SELECT slot, gc_floor, moving, (",
            now!(),
            " + 250) << 16 AS cap FROM slot_own \
             WHERE slot = ANY($1::int[]) AND mode = 1 ORDER BY slot FOR KEY SHARE)"
        )
    };
}

/// What an unconditional write does where a row stands: the version is raised above it, whose write it is is told from
/// the flag, a known operation changes nothing.
macro_rules! bump {
    ($deadline:literal) => {
        concat!(
            "ON CONFLICT (ns, key) DO UPDATE SET hlc = GREATEST(EXCLUDED.hlc, t.hlc + 1), \
             origin = CASE WHEN EXCLUDED.hlc > t.hlc THEN EXCLUDED.origin ELSE EXCLUDED.origin | (1::bigint << 62) END, \
             slot = EXCLUDED.slot, kind = EXCLUDED.kind, val = EXCLUDED.val, expires = EXCLUDED.expires, \
             was = (t.kind = 0 AND (t.expires = 0 OR t.expires > ",
            now!(),
            ")), ops = CASE WHEN EXCLUDED.ops = '{}' THEN t.ops ELSE (ARRAY[EXCLUDED.ops[1], \
             GREATEST(EXCLUDED.hlc, t.hlc + 1) # (CASE WHEN EXCLUDED.hlc > t.hlc THEN EXCLUDED.origin \
             ELSE EXCLUDED.origin | (1::bigint << 62) END)] || t.ops)[1:8] END, \
             ops_floor = CASE WHEN EXCLUDED.ops <> '{}' AND cardinality(t.ops) = 8 THEN ",
            now!(),
            " ELSE t.ops_floor END WHERE NOT (t.ops && EXCLUDED.ops[1:1]) AND ",
            now!(),
            " < ",
            $deadline
        )
    };
}

/// Unconditional puts and deletes of distinct keys, first attempts.
///
/// `$1` slot, `$2` namespace, `$3` key, `$4` hlc, `$5` origin, `$6` kind, `$7` end of life, `$8` op (0 = none), `$9`
/// document: arrays. `$10` the server's time at which nothing may be written any more.
///
/// A row for each that was written, in the order of their keys: namespace, key, the version it got, `was`. [`READ_ROWS`] explains
/// what is missing; to put the rows of both sides together here would cost the server a tenth of the whole.
pub(super) const PUT: &str = concat!(
    "WITH ",
    owned!(),
    ", w AS (INSERT INTO rec AS t (ns, key, slot, hlc, origin, kind, was, expires, ops, val) \
     SELECT ns, key, slot, h, g, kind, false, expires, CASE WHEN op = 0 THEN '{}' ELSE ARRAY[op, h # g] END, val FROM ( \
     SELECT s.*, CASE WHEN h = hlc THEN origin ELSE origin | (1::bigint << 62) END AS g FROM ( \
     SELECT i.*, GREATEST(LEAST(i.hlc, o.cap), o.gc_floor + 1) AS h FROM unnest($1::int[], $2::text[], $3::text[], \
     $4::bigint[], $5::bigint[], $6::smallint[], $7::bigint[], $8::bigint[], $9::bytea[]) \
     AS i(slot, ns, key, hlc, origin, kind, expires, op, val) JOIN o USING (slot)) s) v WHERE ",
    now!(),
    " < $10::bigint ORDER BY ns COLLATE \"C\", key COLLATE \"C\" ",
    bump!("$10::bigint"),
    " RETURNING t.ns, t.key, t.slot, t.hlc, t.origin, t.was), \
     l AS (INSERT INTO move_log SELECT w.slot, w.ns, w.key FROM w JOIN o USING (slot) WHERE o.moving) \
     SELECT ns, key, hlc, origin, was FROM w"
);

/// [`PUT`] under exactly the versions given, or not at all: one that the slot's floor or the server's clock would change is
/// left out, and a row that is as new stays. The same parameters, the same rows.
pub(super) const OFFER: &str = concat!(
    "WITH ",
    owned!(),
    ", w AS (INSERT INTO rec AS t (ns, key, slot, hlc, origin, kind, was, expires, ops, val) \
     SELECT i.ns, i.key, i.slot, i.hlc, i.origin, i.kind, false, i.expires, \
     CASE WHEN i.op = 0 THEN '{}' ELSE ARRAY[i.op, i.hlc # i.origin] END, i.val \
     FROM unnest($1::int[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::smallint[], $7::bigint[], $8::bigint[], \
     $9::bytea[]) AS i(slot, ns, key, hlc, origin, kind, expires, op, val) JOIN o USING (slot) \
     WHERE i.hlc BETWEEN o.gc_floor + 1 AND o.cap AND ",
    now!(),
    " < $10::bigint ORDER BY i.ns COLLATE \"C\", i.key COLLATE \"C\" \
     ON CONFLICT (ns, key) DO UPDATE SET hlc = EXCLUDED.hlc, origin = EXCLUDED.origin, slot = EXCLUDED.slot, \
     kind = EXCLUDED.kind, val = EXCLUDED.val, expires = EXCLUDED.expires, \
     was = (t.kind = 0 AND (t.expires = 0 OR t.expires > ",
    now!(),
    ")), ops = (EXCLUDED.ops || t.ops)[1:8], \
     ops_floor = CASE WHEN EXCLUDED.ops <> '{}' AND cardinality(t.ops) = 8 THEN ",
    now!(),
    " ELSE t.ops_floor END \
     WHERE (t.hlc, t.origin) < (EXCLUDED.hlc, EXCLUDED.origin) AND NOT (t.ops && EXCLUDED.ops[1:1]) AND ",
    now!(),
    " < $10::bigint RETURNING t.ns, t.key, t.slot, t.hlc, t.origin, t.was), \
     l AS (INSERT INTO move_log SELECT w.slot, w.ns, w.key FROM w JOIN o USING (slot) WHERE o.moving) \
     SELECT ns, key, hlc, origin, was FROM w"
);

/// [`PUT`] of one key, which takes half the time. The same parameters, not as arrays; no row where the slot is not
/// owned, else one: version or nothing, `was`.
pub(super) const PUT_ONE: &str = concat!(
    "WITH o AS MATERIALIZED (SELECT gc_floor, moving, (",
    now!(),
    " + 250) << 16 AS cap FROM slot_own WHERE slot = $1::int AND mode = 1 FOR KEY SHARE), \
     v AS (SELECT GREATEST(LEAST($4::bigint, cap), gc_floor + 1) AS h, \
     CASE WHEN $4::bigint BETWEEN gc_floor + 1 AND cap THEN $5::bigint ELSE $5::bigint | (1::bigint << 62) END AS g FROM o), \
     w AS (INSERT INTO rec AS t (ns, key, slot, hlc, origin, kind, was, expires, ops, val) \
     SELECT $2::text, $3::text, $1::int, h, g, $6::smallint, false, $7::bigint, \
     CASE WHEN $8::bigint = 0 THEN '{}' ELSE ARRAY[$8::bigint, h # g] END, $9::bytea FROM v WHERE ",
    now!(),
    " < $10::bigint ",
    bump!("$10::bigint"),
    " RETURNING t.hlc, t.origin, t.was), \
     l AS (INSERT INTO move_log SELECT $1::int, $2::text, $3::text FROM w, o WHERE o.moving) \
     SELECT w.hlc, w.origin, w.was FROM o LEFT JOIN w ON true"
);

/// Puts and deletes of distinct keys with what must hold, or that may be retries.
///
/// As [`PUT`]; `$10` precondition (0 none, 1 absent, 2 exists, 3 the version), `$11` `$12` that version, `$13` keep the
/// lifetime of a live record, `$14` how long ago a retry's first attempt was sent at most, milliseconds (-1 = no retry):
/// arrays. `$15` as `$10` there.
///
/// A row for each key of a slot that is owned: place, version it got, end of life it got, whether a live record stood
/// there, the word for what became of it, the version that stood there and its ring and `was`.
pub(super) const COND: &str = concat!(
    "WITH i AS (SELECT * FROM unnest($1::int[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::smallint[], \
     $7::bigint[], $8::bigint[], $9::bytea[], $10::smallint[], $11::bigint[], $12::bigint[], $13::boolean[], $14::bigint[]) \
     WITH ORDINALITY AS t(slot, ns, key, hlc, origin, kind, expires, op, val, pre, ph, po, keep, lookback, ord)), ",
    owned!(),
    ", k AS MATERIALIZED (SELECT i.ord, t.hlc, t.origin, t.ops, t.was, t.expires, \
     t.kind = 0 AND (t.expires = 0 OR t.expires > ",
    now!(),
    ") AS live, i.op <> 0 AND t.ops @> ARRAY[i.op] AS dup, \
     i.op <> 0 AND i.lookback >= 0 AND t.ops_floor <> 0 AND t.ops_floor >= ",
    now!(),
    " - i.lookback AS lost \
     FROM i JOIN o USING (slot) JOIN rec t ON t.ns = i.ns AND t.key = i.key ORDER BY t.ns, t.key FOR NO KEY UPDATE OF t), \
     j AS MATERIALIZED (SELECT i.*, o.moving, k.hlc AS c_hlc, k.origin AS c_origin, k.ops AS c_ops, k.was AS c_was, \
     k.expires AS c_expires, coalesce(k.live, false) AS live, coalesce(k.dup, false) AS dup, \
     coalesce(k.lost, i.op <> 0 AND i.lookback >= 0 AND o.gc_floor <> 0 AND o.gc_floor >> 16 >= ",
    now!(),
    " - i.lookback) AS lost, GREATEST(LEAST(i.hlc, o.cap), o.gc_floor + 1, coalesce(k.hlc, 0) + 1) AS h, \
     CASE i.pre WHEN 0 THEN true WHEN 1 THEN NOT coalesce(k.live, false) WHEN 2 THEN coalesce(k.live, false) \
     ELSE coalesce(k.live AND k.hlc = i.ph AND k.origin = i.po, false) END AS ok \
     FROM i JOIN o USING (slot) LEFT JOIN k USING (ord)), \
     v AS MATERIALIZED (SELECT *, CASE WHEN h = hlc THEN origin ELSE origin | (1::bigint << 62) END AS g, \
     CASE WHEN keep AND live THEN c_expires ELSE expires END AS e \
     FROM j WHERE ok AND NOT dup AND NOT lost AND ",
    now!(),
    " < $15::bigint), \
     u AS (UPDATE rec t SET hlc = v.h, origin = v.g, slot = v.slot, kind = v.kind, val = v.val, was = v.live, \
     expires = v.e, ops = CASE WHEN v.op = 0 THEN t.ops ELSE (ARRAY[v.op, v.h # v.g] || t.ops)[1:8] END, \
     ops_floor = CASE WHEN v.op <> 0 AND cardinality(t.ops) = 8 THEN ",
    now!(),
    " ELSE t.ops_floor END FROM v WHERE v.c_hlc IS NOT NULL AND t.ns = v.ns AND t.key = v.key \
     RETURNING v.ord, t.hlc, t.origin, t.expires), \
     n AS (INSERT INTO rec (ns, key, slot, hlc, origin, kind, expires, ops, val) \
     SELECT ns, key, slot, h, g, kind, e, CASE WHEN op = 0 THEN '{}' ELSE ARRAY[op, h # g] END, val \
     FROM v WHERE c_hlc IS NULL ORDER BY ns COLLATE \"C\", key COLLATE \"C\" ON CONFLICT (ns, key) DO NOTHING RETURNING ns, key, hlc, origin, expires), \
     l AS (INSERT INTO move_log SELECT v.slot, v.ns, v.key FROM v LEFT JOIN u USING (ord) \
     LEFT JOIN n ON n.ns = v.ns AND n.key = v.key WHERE v.moving AND (u.ord IS NOT NULL OR n.key IS NOT NULL)) \
     SELECT j.ord, coalesce(u.hlc, n.hlc) AS hlc, coalesce(u.origin, n.origin) AS origin, \
     coalesce(u.expires, n.expires) AS expires, j.live, \
     CASE WHEN u.ord IS NOT NULL OR n.key IS NOT NULL THEN 'applied' WHEN j.dup THEN 'dup' WHEN j.lost THEN 'lost' \
     WHEN NOT j.ok THEN 'conflict' WHEN v.ord IS NULL THEN 'late' ELSE 'again' END AS res, \
     j.c_hlc, j.c_origin, j.c_ops, j.c_was \
     FROM j LEFT JOIN v USING (ord) LEFT JOIN u USING (ord) LEFT JOIN n ON n.ns = j.ns AND n.key = j.key"
);

/// Merges rows that carry their versions where that needs no thought: nothing stands there, or something older whose operations
/// are all others. [`APPLY`] is for the rest, and takes more than twice as long. Its parameters.
///
/// A row for each that was stored, in the order of their keys: namespace, key.
pub(super) const MERGE: &str = concat!(
    "WITH ",
    owned!(),
    ", w AS (INSERT INTO rec AS t (ns, key, slot, hlc, origin, kind, was, expires, ops, ops_floor, val) \
     SELECT i.ns, i.key, i.slot, i.hlc, i.origin, i.kind, i.was, i.expires, (i.ring::bigint[])[1:8], i.ops_floor, i.val \
     FROM unnest($1::int[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::smallint[], $7::bigint[], $8::boolean[], \
     $9::bytea[], $10::bigint[], $11::text[]) AS i(slot, ns, key, hlc, origin, kind, expires, was, val, ops_floor, ring) \
     JOIN o USING (slot) WHERE i.hlc > o.gc_floor ORDER BY i.ns COLLATE \"C\", i.key COLLATE \"C\" \
     ON CONFLICT (ns, key) DO UPDATE SET hlc = EXCLUDED.hlc, origin = EXCLUDED.origin, slot = EXCLUDED.slot, \
     kind = EXCLUDED.kind, val = EXCLUDED.val, was = EXCLUDED.was, expires = EXCLUDED.expires, \
     ops = (EXCLUDED.ops || t.ops)[1:8], ops_floor = CASE WHEN cardinality(EXCLUDED.ops) + cardinality(t.ops) > 8 THEN ",
    now!(),
    " ELSE GREATEST(t.ops_floor, EXCLUDED.ops_floor) END \
     WHERE (t.hlc, t.origin) < (EXCLUDED.hlc, EXCLUDED.origin) AND NOT (t.ops && EXCLUDED.ops) \
     RETURNING t.ns, t.key, t.slot), \
     l AS (INSERT INTO move_log SELECT w.slot, w.ns, w.key FROM w JOIN o USING (slot) WHERE o.moving) \
     SELECT ns, key FROM w"
);

/// Merges rows that carry their versions; below the floor only where a row stands. One whose own operation (the one that got its
/// version) is in the ring of an older row is `known`, and changes nothing.
///
/// `$1` slot, `$2` namespace, `$3` key, `$4` hlc, `$5` origin, `$6` kind, `$7` end of life, `$8` was, `$9` document, `$10`
/// when an operation was last pushed out of the ring: arrays. `$11` the rings, each as text of an array.
///
/// A row for each key of a slot that is owned: place and the word for what became of it. The rows that stand are locked
/// first, in order, so an outcome is that of what stood there.
pub(super) const APPLY: &str = concat!(
    "WITH i AS (SELECT t.*, t.ring::bigint[] AS ops FROM unnest($1::int[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], \
     $6::smallint[], $7::bigint[], $8::boolean[], $9::bytea[], $10::bigint[], $11::text[]) \
     WITH ORDINALITY AS t(slot, ns, key, hlc, origin, kind, expires, was, val, ops_floor, ring, ord)), ",
    owned!(),
    ", k AS MATERIALIZED (SELECT i.ord, t.hlc, t.origin, t.ops, t.ops_floor, (t.hlc, t.origin) < (i.hlc, i.origin) \
     AND EXISTS (SELECT FROM generate_series(1, cardinality(i.ops), 2) AS g WHERE i.ops[g + 1] = i.hlc # i.origin \
     AND t.ops @> ARRAY[i.ops[g]]) AS known FROM i JOIN o USING (slot) \
     JOIN rec t ON t.ns = i.ns AND t.key = i.key ORDER BY t.ns, t.key FOR NO KEY UPDATE OF t), \
     j AS MATERIALIZED (SELECT i.*, o.moving, o.gc_floor, k.ord IS NOT NULL AS stands, k.ops AS c_ops, \
     coalesce(k.known, false) AS known, coalesce((k.hlc, k.origin) < (i.hlc, i.origin), false) AS newer, \
     coalesce((k.hlc, k.origin) <= (i.hlc, i.origin), false) AS leads FROM i JOIN o USING (slot) LEFT JOIN k USING (ord)), \
     m AS MATERIALIZED (SELECT j.ord, (SELECT coalesce(array_agg(x.v ORDER BY x.p, x.half), '{}') FROM ( \
     SELECT p.p, half, CASE half WHEN 0 THEN p.op ELSE p.fp END AS v FROM (SELECT DISTINCT ON (q.op) q.op, q.fp, q.p FROM ( \
     SELECT a[2 * g - 1] AS op, a[2 * g] AS fp, CASE WHEN first THEN g ELSE g + 8 END AS p \
     FROM (VALUES (j.ops, j.leads), (j.c_ops, NOT j.leads)) AS r(a, first), generate_series(1, cardinality(r.a) / 2) AS g) q \
     ORDER BY q.op, q.p) p, (VALUES (0), (1)) AS h(half)) x) AS ops FROM j WHERE j.stands), \
     u AS (UPDATE rec t SET hlc = CASE WHEN j.newer THEN j.hlc ELSE t.hlc END, \
     origin = CASE WHEN j.newer THEN j.origin ELSE t.origin END, slot = CASE WHEN j.newer THEN j.slot ELSE t.slot END, \
     kind = CASE WHEN j.newer THEN j.kind ELSE t.kind END, val = CASE WHEN j.newer THEN j.val ELSE t.val END, \
     was = CASE WHEN j.newer THEN j.was ELSE t.was END, expires = CASE WHEN j.newer THEN j.expires ELSE t.expires END, \
     ops = m.ops[1:8], ops_floor = CASE WHEN cardinality(m.ops) > 8 THEN ",
    now!(),
    " ELSE GREATEST(t.ops_floor, j.ops_floor) END \
     FROM j JOIN m USING (ord) WHERE j.stands AND NOT j.known AND t.ns = j.ns AND t.key = j.key AND (j.newer OR t.ops <> m.ops[1:8] \
     OR cardinality(m.ops) > 8 OR j.ops_floor > t.ops_floor) \
     RETURNING j.ord), \
     n AS (INSERT INTO rec (ns, key, slot, hlc, origin, kind, was, expires, ops, ops_floor, val) \
     SELECT ns, key, slot, hlc, origin, kind, was, expires, ops[1:8], ops_floor, val FROM j \
     WHERE NOT stands AND hlc > gc_floor ORDER BY ns COLLATE \"C\", key COLLATE \"C\" ON CONFLICT (ns, key) DO NOTHING RETURNING ns, key), \
     l AS (INSERT INTO move_log SELECT j.slot, j.ns, j.key FROM j LEFT JOIN u USING (ord) \
     LEFT JOIN n ON n.ns = j.ns AND n.key = j.key WHERE j.moving AND (u.ord IS NOT NULL OR n.key IS NOT NULL)) \
     SELECT j.ord, CASE WHEN n.key IS NOT NULL OR (u.ord IS NOT NULL AND j.newer) THEN 'applied' \
     WHEN j.known THEN 'known' WHEN j.stands THEN 'superseded' WHEN j.hlc > j.gc_floor THEN 'again' ELSE 'below_floor' END AS res \
     FROM j LEFT JOIN u USING (ord) LEFT JOIN n ON n.ns = j.ns AND n.key = j.key"
);

/// What merges of rows have come to already: something as new stands there, and the row's operations are in its ring, or would be
/// pushed out of it, and whoever repeats them is told so already. An operation was first sent before its version was minted,
/// by a clock that is at most 5 s behind the server's: the bound that conditional writes beside queued ones rest on.
///
/// `$1` slot, `$2` namespace, `$3` key, `$4` hlc, `$5` origin, `$6` when an operation was last pushed out of the ring: arrays.
/// `$7` the rings, each as text of an array.
///
/// A row for each key that need not be merged: place, and whether it is this very version that stands there. It takes no
/// lock, so a server that is asked this alone writes nothing. What stands there later is newer still.
pub(super) const ALREADY: &str = "SELECT i.ord, (t.hlc, t.origin) = (i.hlc, i.origin) AS own \
     FROM unnest($1::int[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[]) \
     WITH ORDINALITY AS i(slot, ns, key, hlc, origin, ops_floor, ring, ord) \
     JOIN slot_own o ON o.slot = i.slot AND o.mode = 1 JOIN rec t ON t.ns = i.ns AND t.key = i.key \
     WHERE NOT pg_is_in_recovery() AND (t.hlc, t.origin) >= (i.hlc, i.origin) AND t.ops_floor >= i.ops_floor \
     AND (t.ops @> i.ring::bigint[] OR ((t.hlc, t.origin) > (i.hlc, i.origin) \
     AND cardinality(t.ops) = 8 AND t.ops_floor >= (i.hlc >> 16) + 5000))";

/// The slots of the primary alone: one that has become a standby since may lag behind the one that took over. As a table of
/// its own, so that it is asked once for a statement and not for each row.
macro_rules! primarys {
    () => {
        "(SELECT bits FROM slots_owned WHERE NOT pg_is_in_recovery())"
    };
}

/// The statement of [`READ`], by a time. An expired document is given, too: looking twice at the time costs more.
macro_rules! read {
    ($now:expr, $slots:expr) => {
        concat!(
            "SELECT i.ord, t.hlc, t.origin, t.kind = 0 AND (t.expires = 0 OR t.expires > ",
            $now,
            ") AS live, t.expires, t.val \
             FROM unnest($1::int[], $2::text[], $3::text[]) WITH ORDINALITY AS i(slot, ns, key, ord) \
             JOIN ",
            $slots,
            " o ON get_bit(o.bits, i.slot) = 1 LEFT JOIN rec t ON t.ns = i.ns AND t.key = i.key"
        )
    };
}

/// Reads of any keys. `$1` slot, `$2` namespace, `$3` key: arrays.
///
/// A row for each key of a slot that is owned: place, version (nothing where there is no row), whether it is live, end of
/// life, and the document. No row on a standby.
pub(super) const READ: &str = read!(now!(), primarys!());

/// The same on a replica, whose clock is another one: `$4` is the primary's time.
pub(super) const READ_REPLICA: &str = read!("$4::bigint", "slots_owned");

/// A primary's position: the cluster's number, timeline, bytes of log that are on its disk, and its time. It fails on a replica.
/// What is acknowledged, or seen by anybody, is on its disk; the position that is written next may be one that no replica
/// comes to before something is.
pub(super) const WRITTEN: &str = concat!(
    "SELECT (SELECT system_identifier FROM pg_control_system()), \
     ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint, \
     (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint, ",
    now!()
);

/// A replica's position: the cluster's number, timeline, bytes of log replayed; nothing where it is none. The timeline is
/// that of its last restart point, or that which it receives where its user may see that (`pg_monitor`): it may be told too
/// low for a while; never too high, because a timeline is only received that began behind what was replayed.
pub(super) const REPLAYED: &str = "SELECT (SELECT system_identifier FROM pg_control_system()), \
     greatest((SELECT timeline_id FROM pg_control_checkpoint()), \
     (SELECT received_tli FROM pg_stat_get_wal_receiver()))::bigint, \
     (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint WHERE pg_is_in_recovery()";

/// Reads of whole rows, for deciding on them. `$1` slot, `$2` namespace, `$3` key: arrays.
///
/// A row for each key of a slot that is owned: place, the row's columns (nothing where there is no row), the slot's floor
/// and the server's time.
pub(super) const READ_ROWS: &str = concat!(
    "SELECT i.ord, t.hlc, t.origin, t.kind, t.was, t.expires, t.ops, t.ops_floor, t.val, o.gc_floor, ",
    now!(),
    " AS now FROM unnest($1::int[], $2::text[], $3::text[]) WITH ORDINALITY AS i(slot, ns, key, ord) \
     JOIN (SELECT slot, gc_floor FROM slot_own WHERE mode = 1 AND NOT pg_is_in_recovery()) o ON o.slot = i.slot \
     LEFT JOIN rec t ON t.ns = i.ns AND t.key = i.key"
);

/// The server's time, and whether it is a standby, which follows another and takes no writes.
pub(super) const LOOK: &str = concat!("SELECT ", now!(), ", pg_is_in_recovery()");

/// The rows that a page looks at, in one direction, as many as `$limit`. A row of a slot that this server does not own is a dead
/// one: what a move left behind is another server's by now.
macro_rules! walk {
    ($order:literal, $now:expr, $more:literal, $limit:literal) => {
        concat!(
            "SELECT t.key, t.hlc, t.origin, x.live, t.expires, t.val, \
             CASE WHEN x.live THEN octet_length(t.val) ELSE 0 END AS load, CASE WHEN x.live THEN octet_length(t.key) \
             + CASE WHEN $7::boolean THEN 0 ELSE octet_length(t.val) END ELSE 0 END AS size \
             FROM rec t CROSS JOIN LATERAL (SELECT t.kind = 0 AND coalesce(get_bit((SELECT bits FROM o), t.slot) = 1, false) \
             AND (t.expires = 0 OR t.expires > ",
            $now,
            ") AS live OFFSET 0) x WHERE t.ns = $1::text AND t.key >= $2::text AND t.key < $3::text AND t.key > $4::text ",
            $more,
            " ORDER BY t.key ",
            $order,
            " LIMIT ",
            $limit
        )
    };
}

/// A page of a namespace, in one direction. It looks at no more rows than it may give, and at some behind them for each of those
/// that is dead.
macro_rules! page {
    ($order:literal, $behind:literal, $last:literal, $now:expr, $slots:expr) => {
        concat!(
            "WITH o AS MATERIALIZED (SELECT bits FROM ",
            $slots,
            " s), a AS MATERIALIZED (",
            walk!($order, $now, "", "$5::bigint"),
            "), n AS MATERIALIZED (SELECT count(*) = $5::bigint AND count(*) FILTER (WHERE live) < $9::bigint AS short, \
             $10::bigint * count(*) FILTER (WHERE NOT live) AS more, ",
            $last,
            "(key) AS last FROM a), b AS MATERIALIZED (",
            walk!($order, $now, $behind, "(SELECT more FROM n)"),
            "), p AS (SELECT * FROM a UNION ALL SELECT * FROM b) \
             SELECT key, hlc, origin, live, expires, CASE WHEN live THEN val END AS val, size, load, NULL::bytea AS slots FROM ( \
             SELECT *, sum(size) OVER w - size AS before, sum(load) OVER w - load AS loaded, \
             sum(live::int) OVER w - live::int AS lives FROM p WINDOW w AS (ORDER BY key ",
            $order,
            ")) q WHERE before < $6::bigint AND loaded < $8::bigint AND lives < $9::bigint \
             UNION ALL SELECT NULL, NULL, NULL, (SELECT short AND (SELECT count(*) FROM b) >= more FROM n), \
             NULL, NULL, NULL, NULL, varbit_send(bits) FROM o"
        )
    };
}

macro_rules! page_up {
    ($now:expr, $slots:expr) => {
        page!("ASC", "AND (SELECT short FROM n) AND t.key > (SELECT last FROM n)", "max", $now, $slots)
    };
}

macro_rules! page_down {
    ($now:expr, $slots:expr) => {
        page!("DESC", "AND (SELECT short FROM n) AND t.key < (SELECT last FROM n)", "min", $now, $slots)
    };
}

/// A page of a namespace going up. `$1` namespace, `$2` first key, `$3` last key, exclusive, `$4` a key behind which it begins, too:
/// bounds that a statement has once and for all can be looked up, whatever its plan. `$5` rows to look at, `$6` bytes after which
/// the page is full, `$7` whether documents do not count towards them, `$8` bytes of documents after which the page ends in any
/// case, `$9` live rows after which it is full, `$10` rows behind them to look at for each dead one where it is not.
///
/// Every row looked at, in any order, dead ones without a document: key, version, whether it is live, end of life, document,
/// bytes that count, bytes of the document. The documents of what stands behind the page's end are neither read nor given.
/// Besides, one row without a key: the slots that this server owned in the same snapshot, as `varbit_send` writes them, and in
/// the place of `live` whether it stopped looking before the range ended though the page is not full. No such row on a
/// standby.
pub(super) const SCAN: &str = page_up!(now!(), primarys!());

/// The same going down.
pub(super) const SCAN_REVERSE: &str = page_down!(now!(), primarys!());

/// [`SCAN`] on a replica: `$11` is the primary's time.
pub(super) const SCAN_REPLICA: &str = page_up!("$11::bigint", "slots_owned");

/// [`SCAN_REVERSE`] on a replica: `$11` is the primary's time.
pub(super) const SCAN_REVERSE_REPLICA: &str = page_down!("$11::bigint", "slots_owned");

/// [`READ_ROWS`] whose rows nobody else may write until the transaction ends, nor take the slots away.
pub(super) const LOCK_ROWS: &str = concat!(
    "WITH i AS (SELECT * FROM unnest($1::int[], $2::text[], $3::text[]) WITH ORDINALITY AS t(slot, ns, key, ord)), ",
    owned!(),
    ", k AS MATERIALIZED (SELECT i.ord, t.hlc, t.origin, t.kind, t.was, t.expires, t.ops, t.ops_floor, t.val \
     FROM i JOIN o USING (slot) JOIN rec t ON t.ns = i.ns AND t.key = i.key ORDER BY t.ns, t.key FOR NO KEY UPDATE OF t) \
     SELECT i.ord, k.hlc, k.origin, k.kind, k.was, k.expires, k.ops, k.ops_floor, k.val, o.gc_floor, ",
    now!(),
    " AS now FROM i JOIN o USING (slot) LEFT JOIN k USING (ord)"
);

/// Stores rows as they are, those that stand under the locks of this transaction. `$1` slot, `$2` namespace, `$3` key, `$4`
/// hlc, `$5` origin, `$6` kind, `$7` end of life, `$8` was, `$9` document, `$10` when an operation was last pushed out, `$11`
/// rings as text, `$12` whether a row stands: arrays. `$13` the server's time at which nothing may be written any more.
///
/// How many were stored: fewer where one was written by somebody else in between, or it is too late.
pub(super) const STORE: &str = concat!(
    "WITH i AS (SELECT t.*, t.ring::bigint[] AS ops FROM unnest($1::int[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], \
     $6::smallint[], $7::bigint[], $8::boolean[], $9::bytea[], $10::bigint[], $11::text[], $12::boolean[]) \
     AS t(slot, ns, key, hlc, origin, kind, expires, was, val, ops_floor, ring, stands) WHERE ",
    now!(),
    " < $13::bigint), \
     u AS (UPDATE rec t SET hlc = i.hlc, origin = i.origin, slot = i.slot, kind = i.kind, val = i.val, was = i.was, \
     expires = i.expires, ops = i.ops, ops_floor = i.ops_floor FROM i \
     WHERE i.stands AND t.ns = i.ns AND t.key = i.key RETURNING t.slot, t.ns, t.key), \
     n AS (INSERT INTO rec (ns, key, slot, hlc, origin, kind, was, expires, ops, ops_floor, val) \
     SELECT ns, key, slot, hlc, origin, kind, was, expires, ops, ops_floor, val FROM i WHERE NOT stands ORDER BY ns COLLATE \"C\", key COLLATE \"C\" \
     ON CONFLICT (ns, key) DO NOTHING RETURNING slot, ns, key), \
     w AS (SELECT * FROM u UNION ALL SELECT * FROM n), \
     l AS (INSERT INTO move_log SELECT w.slot, w.ns, w.key FROM w JOIN slot_own o USING (slot) WHERE o.moving) \
     SELECT count(*) FROM w"
);

/// What a sweep step looks at: `$1` `$2` namespace and key behind which it starts, `$3` rows. Every row, with what is due:
/// `expired` for records that ended `$4` ms ago, `tombstone` for tombstones, and the server's time.
pub(super) const WALK: &str = concat!(
    "SELECT ns, key, slot, hlc, origin, CASE WHEN kind = 1 THEN 'tombstone' WHEN expires <> 0 AND expires <= ",
    now!(),
    " - $4::bigint THEN 'expired' ELSE '' END AS due, ",
    now!(),
    " AS now FROM rec WHERE (ns, key) > ($1::text, $2::text) ORDER BY ns, key LIMIT $3::bigint"
);

/// Turns expired records into tombstones, each only if it is the one that was seen: `$1` namespace, `$2` key, `$3` hlc,
/// `$4` origin. They keep their versions. A row for each that was. It waits for nobody: a record that is being written is another
/// one in a moment.
pub(super) const BURY: &str = "WITH k AS MATERIALIZED (SELECT t.ns, t.key \
     FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS i(ns, key, hlc, origin) \
     JOIN rec t ON t.ns = i.ns AND t.key = i.key AND t.hlc = i.hlc AND t.origin = i.origin AND t.kind = 0 \
     ORDER BY t.ns, t.key FOR NO KEY UPDATE OF t SKIP LOCKED) \
     UPDATE rec t SET kind = 1, val = NULL, expires = 0 FROM k WHERE t.ns = k.ns AND t.key = k.key RETURNING 1";

/// Removes tombstones of slot `$5`, as [`BURY`], and raises its floor to `$6`. It waits until nobody writes into the slot, and
/// keeps them out for as long as it takes: one statement.
pub(super) const REMOVE: &str = "WITH c AS MATERIALIZED ( \
     SELECT slot FROM slot_own WHERE slot = $5::int AND mode = 1 FOR UPDATE), \
     f AS (UPDATE slot_own o SET gc_floor = GREATEST(o.gc_floor, $6::bigint) FROM c WHERE o.slot = c.slot) \
     DELETE FROM rec t USING c, unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS i(ns, key, hlc, origin) \
     WHERE t.ns = i.ns AND t.key = i.key AND t.hlc = i.hlc AND t.origin = i.origin AND t.kind = 1 AND t.slot = c.slot \
     RETURNING 1";

/// Notes how namespace `$1` is partitioned, unless it is noted.
pub(super) const NOTE_PARTITIONING: &str =
    "INSERT INTO ns_part (ns, spec) VALUES ($1::text, $2::text) ON CONFLICT (ns) DO NOTHING";

/// How namespace `$1` is partitioned.
pub(super) const PARTITIONING: &str = "SELECT spec FROM ns_part WHERE ns = $1::text";

/// Notes the durability of namespace `$1`, unless one is noted.
pub(super) const NOTE_DURABILITY: &str =
    "INSERT INTO ns_durability (ns, mode) VALUES ($1::text, $2::text) ON CONFLICT (ns) DO NOTHING";

/// Replaces the durability of namespace `$1`, where it is `$3` or none is noted, by `$2`.
pub(super) const REPLACE_DURABILITY: &str = "INSERT INTO ns_durability AS d (ns, mode) VALUES ($1::text, $2::text) \
    ON CONFLICT (ns) DO UPDATE SET mode = EXCLUDED.mode WHERE d.mode = $3::text";

/// The durability of namespace `$1`.
pub(super) const DURABILITY: &str = "SELECT mode FROM ns_durability WHERE ns = $1::text";

/// One placement at a time is made, by whoever comes first. The number is `xxh3_64("datastore placement")`'s first half.
pub(super) const LOCK_PLACEMENT: &str = "SELECT pg_advisory_xact_lock(1148387443, 1)";

/// Whose slots this server has, and its name.
pub(super) const SLOTS_OWNED: &str = "SELECT slot FROM slot_own WHERE mode = 1";

/// The name this server was given.
pub(super) const NAME: &str = "SELECT name FROM shard_name";

/// Gives this server a name, once.
pub(super) const SET_NAME: &str =
    "INSERT INTO shard_name (name) VALUES ($1::text) ON CONFLICT (one) DO NOTHING";

/// Gives this server the slots from `$1` to before `$2`.
pub(super) const OWN: &str = "INSERT INTO slot_own (slot, mode, epoch) SELECT slot, 1, 1 FROM generate_series($1::int, $2::int - 1) AS t(slot)";

/// Who is to be given which slots, as somebody noted who began: name, first and end.
pub(super) const PLAN: &str = "SELECT name, first_slot, end_slot FROM placement_plan ORDER BY first_slot";

/// Notes it: `$1` names, `$2` firsts, `$3` ends.
pub(super) const SET_PLAN: &str = "INSERT INTO placement_plan (name, first_slot, end_slot) \
     SELECT * FROM unnest($1::text[], $2::int[], $3::int[])";

/// It is done.
pub(super) const END_PLAN: &str = "DELETE FROM placement_plan";
