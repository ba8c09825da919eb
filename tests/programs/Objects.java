// Builds about MIB megabytes of objects, walks them in order and at random while making garbage, and prints a hash of
// what it read: the same for the same arguments.
//
//   java Objects.java MIB
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

public class Objects {
    private static final int PER_MIB = 3000;
    private static long state = 12345;

    private static int random(int below) {
        state = state * 6364136223846793005L + 1442695040888963407L;
        return (int) ((state >>> 33) % below);
    }

    private record Item(int id, String name, double score, int[] history, String[] tags) {}

    private static Item item(int id) {
        String[] tags = {"tag" + random(100), "city" + random(1000)};
        return new Item(id, "name" + id, random(1000000) / 7.0, new int[] {random(1 << 30), random(1 << 30), id}, tags);
    }

    private static long hash(long h, Item i) {
        return (h ^ i.id() ^ i.name().hashCode() ^ i.history()[1] ^ i.tags()[1].length()) * 1099511628211L + (long) i.score();
    }

    public static void main(String[] args) {
        int count = Integer.parseInt(args[0]) * PER_MIB;
        List<Item> items = new ArrayList<>();
        Map<String, Item> byName = new HashMap<>();
        for (int i = 0; i < count; i++) {
            Item made = item(i);
            items.add(made);
            if (i % 8 == 0) byName.put(made.name(), made);
        }
        long h = 1469598103934665603L;
        for (int pass = 0; pass < 2; pass++) {
            for (Item i : items) h = hash(h, i);
        }
        for (int i = 0; i < count / 2; i++) {
            int at = random(count);
            h = hash(h, byName.getOrDefault("name" + at, items.get(at)));
            if (i % 16 == 0) items.set(at, item(at));
        }
        System.out.println(count + " items, hash " + Long.toHexString(h));
    }
}
