-- Which slots each server is given, noted on the first of them before any is given: whoever finds it goes on with it, and the
-- last step removes it.
CREATE TABLE placement_plan (
    name text PRIMARY KEY,
    first_slot int NOT NULL,
    end_slot int NOT NULL
);
