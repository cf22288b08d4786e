INSERT INTO bills VALUES (101, ROW(1, 'USD')::amount, 'n', 'b');
