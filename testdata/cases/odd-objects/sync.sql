INSERT INTO bills VALUES (100, ROW(1, 'USD')::amount, 'n', 'b');
