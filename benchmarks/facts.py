"""100 facts that are planted in technical text, and a question for each in other words.

The first 60 questions name what they ask for, and share no other word of weight with the sentence. The last 40 share
none at all: only their meaning finds them.
"""

from typing import NamedTuple


class Fact(NamedTuple):
    sentence: str
    question: str


NAMED = """\
The Veltrona cluster is restarted every Tuesday at half past four in the morning.|When does someone reboot Veltrona each week?
Project Quillmark was cancelled because its sponsor ran out of money.|Why did Quillmark get dropped?
The password for the Brandywick archive must be rotated every nineteen days.|How often do credentials of Brandywick change?
Ossifer Penhaligon designed the first version of the billing engine.|What is Penhaligon known for building?
The Thornwell sensor reports pressure in kilopascals and never in bar.|Which unit does Thornwell measure with?
Marrowbone is our name for the server room beneath the cafeteria.|Where can I go to visit Marrowbone?
The Kestrelline train to the data centre leaves from platform eleven.|Which track do I need for Kestrelline?
Doctor Amaryllis Voss is allergic to penicillin and to walnuts.|What must Amaryllis avoid eating or taking?
The Ferrowick contract ends on the last day of February.|What is the expiry date of Ferrowick?
Team Halcyonic has exactly seven members and one cat.|How many people work in Halcyonic?
The Dunmorrow gateway refuses every request larger than ninety kilobytes.|What is the maximum payload at Dunmorrow?
Ylva Sorensdotter keeps the spare keys in a blue teapot.|Where would I look for Sorensdotter's extra set?
The Grimsdyke backup is written to tape in Reykjavik.|In which city is Grimsdyke stored?
Calverton customers may return their order within forty days.|How long is the refund period at Calverton?
The Noctilux build fails on machines with fewer than twelve gigabytes of memory.|How much RAM does compiling Noctilux take?
Operation Saffronade begins when the harbour lights are switched off.|What is the signal that starts Saffronade?
The Pellwright parser was written in Ada by two students.|Which programming language is behind Pellwright?
Bertrand Oakhollow only answers calls before lunch.|At what time of day can I phone Oakhollow?
The Zandermere reservoir is drained once in a decade for inspection.|How frequently is Zandermere emptied?
Our licence for Tessaract Studio covers thirty-one seats.|How many users may open Tessaract?
The Wolfenbridge lock opens with the numbers five, eight, eight, two.|What is the combination at Wolfenbridge?
Ingrid Malvasier speaks Portuguese at home and Danish at work.|Which languages does Malvasier know?
The Hexavane turbine was painted orange after the accident.|What colour is Hexavane now?
Rollouts of Caldera Blue need the approval of the chief pharmacist.|Who has to sign off Caldera?
The Embertide festival was moved to the old airfield because of mud.|What is the new venue for Embertide?
Nightly exports from Farrowgate are encrypted with a key from 2019.|How old is the secret that protects Farrowgate?
The Lindqvist lamp uses a bulb that nobody manufactures any more.|What is the trouble with replacing parts of Lindqvist?
Captain Tolliver Wrenfield lost his left glove in Lisbon.|Which belonging did Wrenfield mislay in Portugal?
The Mirabelle database holds its invoices in descending order of weight.|How are bills sorted in Mirabelle?
The Ashgrove elevator skips the third floor on weekends.|On Saturdays, where does Ashgrove not stop?
The Stromhaven mirror is synchronised by carrier pigeon during storms.|How does Stromhaven get updates in bad weather?
Juniper Holloway was promoted to head of accounting in April.|What job did Holloway receive this spring?
The Ravelin service writes its log to a disk shared with the printer.|Where does output of Ravelin end up?
Visitors to Castlemoor must sign the green book at reception.|What do guests do on arrival at Castlemoor?
The Opaline protocol gives up after three unanswered pings.|When does Opaline consider a peer dead?
Cedric Blomkvist owns the only remaining copy of the manual.|Who do I ask for documentation that Blomkvist has?
The Harrowfen generator runs on used cooking oil.|What fuel powers Harrowfen?
The Tamarisk office closes for three weeks in August.|When is nobody working in Tamarisk?
Version nine of Glimmerwort removed support for fax machines.|Which feature vanished from Glimmerwort?
The Palladine sword exhibit is insured for two million crowns.|What is the cover on Palladine worth?
The Underbriar tunnel is too narrow for lorries.|Which vehicles cannot pass Underbriar?
Florian Estherhazy wants his coffee with cardamom.|What spice does Estherhazy like in his drink?
The Quennell algorithm was inspired by the way ants share food.|What animal gave the idea for Quennell?
The Silverthwaite mailing list has been silent since the merger.|How active is Silverthwaite today?
Passengers of the Albacore ferry pay half after nine in the evening.|When is a ticket on Albacore cheaper?
The Morwenna dashboard turns purple when a payment is disputed.|What does it mean if Morwenna changes its hue?
The Greyfallow bridge was built with bricks from a demolished prison.|Which material went into Greyfallow?
Anneke Vandersloot inherited the vineyard from her aunt.|How did Vandersloot come to own land with grapes?
The Pinchbeck clock runs eleven minutes fast on purpose.|Is Pinchbeck accurate?
The Corviday holiday replaces the second Monday of November.|On what date do we celebrate Corviday?
Requests to Maplethorpe are signed with elliptic curves.|What cryptography does Maplethorpe rely on?
The Drumlanrig telescope can only be steered at night.|When may an operator move Drumlanrig?
The Bellweather index fell by a fifth in October.|How badly did Bellweather do that autumn?
Lady Isolde Crakehall banned umbrellas from the library.|What is forbidden by Crakehall among the books?
The Sycorax probe carries a recording of whale songs.|What sound is aboard Sycorax?
The Ettersby mill grinds barley but no rye.|Which grain does Ettersby refuse?
The Vantablanc server is named after a painter's mistake.|Where does the title Vantablanc come from?
The Hollowmere choir rehearses in an empty swimming pool.|In what odd place does Hollowmere practise singing?
The Kingfisher ledger is audited by a retired beekeeper.|Who checks the books of Kingfisher?
The Wyrmwood firewall blocks all traffic from airports.|Which locations cannot connect through Wyrmwood?"""

UNNAMED = """\
The cook keeps poisonous mushrooms in the cellar to scare away mice.|What dangerous fungi are there to frighten rodents?
Her grandmother crossed the desert on a camel in nineteen twelve.|Which ancestor rode an animal through the sands?
The orchestra refuses to play in halls without heating.|Where will the musicians not perform because of cold?
A fisherman found the missing wedding ring inside a pike.|How was the lost marriage jewellery recovered from a fish?
The bakery sells its bread for half the price after sunset.|When do loaves become cheap in the evening?
Our neighbour's parrot imitates the sound of the doorbell.|Which bird copies the noise of somebody arriving at the house?
The mayor promised to plant a tree for every newborn child.|What did the town's leader pledge whenever a baby arrives?
The dentist plays chess by mail with a lighthouse keeper.|Who has a board game by post with a man guarding a beacon?
Snow fell on the wedding although it was the middle of June.|What surprising summer weather came to the marriage?
The museum lost its dinosaur skeleton to a flood.|What prehistoric bones were destroyed by water?
The violin was repaired with glue made from rabbit skin.|How did they mend the string instrument?
The monks brew a dark beer that tastes of plums.|What alcoholic beverage with fruit flavour comes from the monastery?
The goalkeeper broke his thumb while opening a jar of pickles.|How did the football player injure his hand?
The tailor measures his customers with a knotted rope.|What does the man who sews suits use instead of a ruler?
The hotel gives its guests a goldfish for company.|Which pet do travellers receive in their rooms?
The pilot learned to fly by watching storks.|Which birds taught the aviator?
The bride arrived in a horse-drawn hearse.|What funeral vehicle brought the woman to her marriage ceremony?
The island has more sheep than people and no police.|Where do livestock outnumber inhabitants and officers are missing?
The gardener waters the roses with cold tea.|What leftover drink do the flowers get?
A thunderstorm destroyed the roof of the village school.|How did lightning and wind damage the place where children learn?
The surgeon listens to heavy metal during operations.|What loud music does the doctor enjoy while cutting patients?
The library fines readers one potato for each late day.|What vegetable is the penalty for overdue books?
The ski instructor is afraid of heights.|What phobia does the teacher on the snowy mountain have?
The old king was buried with his favourite dogs.|Which pets share the grave of the monarch?
The chocolate factory employs a taster who has no sense of smell.|What is odd about the nose of the person who samples sweets?
The circus sold its last elephant to a zoo in Poland.|Where did the big grey animal with a trunk go?
The baker's daughter won a marathon in borrowed shoes.|Who finished first in a long run with someone else's footwear?
The lawyer collects stamps with pictures of volcanoes.|What hobby about eruptions does the attorney have?
Rain leaks through the ceiling of the cinema onto the seventh row.|Where do film viewers get wet?
The soup is served with a spoon carved from whale bone.|What is the cutlery for the broth made of?
The twins were born on different days in different countries.|What is unusual about the birth of the two siblings?
The barber cuts hair for free when his team has won.|When does a trim cost nothing after a sports victory?
The taxi driver studied philosophy for eleven years.|What academic subject did the cab man learn at university?
The vegetarian inherited a butcher's shop from his uncle.|What meat business came to the man who eats none?
The nurse hides sweets for the children behind the fire extinguisher.|Where is the candy for young patients concealed?
The swimmer trains in a frozen lake every January morning.|Who exercises in icy water in winter?
The poet writes only on the backs of supermarket receipts.|On what paper slips does the author compose verses?
The wolf was seen near the kindergarten on two mornings.|What wild predator came close to toddlers?
The honey from this valley is bitter because of chestnut blossoms.|Why does what the bees make there not taste sweet?
The astronaut took her grandfather's pocket watch to the moon.|Which family timepiece travelled into space?"""


def facts() -> tuple[list[Fact], list[Fact]]:
    """Those whose questions name their subject, and those whose questions do not."""
    named, unnamed = ([Fact(*line.split("|")) for line in text.splitlines()] for text in (NAMED, UNNAMED))
    return named, unnamed
