-- Times are Unix milliseconds of this server's clock; 0 = never. Versions are (hlc, origin).

-- Who owns a slot. mode: 1 this server answers for it. Writers hold the row FOR KEY SHARE, whoever changes it FOR UPDATE.
CREATE TABLE slot_own (
    slot     int      PRIMARY KEY,
    mode     smallint NOT NULL,
    epoch    bigint   NOT NULL,
    moving   boolean  NOT NULL DEFAULT false,
    gc_floor bigint   NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- kind: 0 live, 1 tombstone. was: the write that made the row found a live record. ops: operation and fingerprint of its
-- version in turns, newest first, at most four of each. ops_floor: when an operation was last pushed out.
CREATE TABLE rec (
    ns        text     COLLATE "C" NOT NULL,
    key       text     COLLATE "C" NOT NULL,
    slot      int      NOT NULL,
    hlc       bigint   NOT NULL,
    origin    bigint   NOT NULL,
    kind      smallint NOT NULL,
    was       boolean  NOT NULL DEFAULT false,
    expires   bigint   NOT NULL DEFAULT 0,
    ops       bigint[] NOT NULL DEFAULT '{}',
    ops_floor bigint   NOT NULL DEFAULT 0,
    val       bytea,
    PRIMARY KEY (ns, key)
) WITH (fillfactor = 80);
-- A stored record is packed already where that pays.
ALTER TABLE rec ALTER val SET STORAGE EXTERNAL;
CREATE INDEX rec_slot ON rec (slot);

-- Keys of slots that are being moved, written since the copy began.
CREATE TABLE move_log (
    slot int  NOT NULL,
    ns   text COLLATE "C" NOT NULL,
    key  text COLLATE "C" NOT NULL
);

-- How the keys of a namespace are partitioned, as its first writer said.
CREATE TABLE ns_part (
    ns   text COLLATE "C" PRIMARY KEY,
    spec text NOT NULL
);

-- What this server is called in the list of shards: one row, written when it is given its slots.
CREATE TABLE shard_name (
    name text NOT NULL,
    one  boolean PRIMARY KEY DEFAULT true CHECK (one)
);
