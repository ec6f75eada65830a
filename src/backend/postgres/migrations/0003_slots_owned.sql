-- Which slots this server owns, in one row: bit n is slot n. Reads look here, where a look costs a tenth of a look into
-- slot_own; writes lock there. Both are of one transaction, so a statement sees the same in both.
CREATE TABLE slots_owned (
    bits bit varying NOT NULL,
    one  boolean PRIMARY KEY DEFAULT true CHECK (one)
);
INSERT INTO slots_owned (bits)
    SELECT string_agg((o.slot IS NOT NULL)::int::text, '' ORDER BY s.slot)::bit varying
    FROM generate_series(0, 4095) AS s(slot) LEFT JOIN slot_own o ON o.slot = s.slot AND o.mode = 1;

CREATE FUNCTION datastore_slots_owned() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- One after the other; what is counted next is seen as it stands behind the one before.
    PERFORM 1 FROM slots_owned FOR UPDATE;
    UPDATE slots_owned SET bits = (
        SELECT string_agg((o.slot IS NOT NULL)::int::text, '' ORDER BY s.slot)::bit varying
        FROM generate_series(0, 4095) AS s(slot) LEFT JOIN slot_own o ON o.slot = s.slot AND o.mode = 1);
    RETURN NULL;
END $$;
CREATE TRIGGER slots_owned AFTER INSERT OR DELETE OR UPDATE OF mode, slot OR TRUNCATE ON slot_own
    FOR EACH STATEMENT EXECUTE FUNCTION datastore_slots_owned();
